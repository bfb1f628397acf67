"""One model split over several processes: mlx_lm.server in ranks that mlxq starts as `mlx.launch` would."""
