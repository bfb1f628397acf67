"""The machine: processes, ports, memory, hardware, logs and sleep."""
