"""What is learned across studies: which configurations are likely to be good on a new task."""
