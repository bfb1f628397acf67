"""Services: started, watched, restarted and replaced."""
