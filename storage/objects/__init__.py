"""What a store stands on: objects with keys, in a folder of this machine or in a cloud's object storage."""
