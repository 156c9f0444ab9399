"""What a sweep leaves in MLflow. Only the driver writes, through one connection."""
