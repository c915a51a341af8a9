"""What reads records: cells, leaderboards, MLflow. Never imports torch, never changes a record."""
