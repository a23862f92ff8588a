"""What a chapter trains: one file a model, each with its loss."""
