"""Jobs that write rows: from prompts on the host through the device loops to files."""
