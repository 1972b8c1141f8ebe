"""What stands around the processes of a system when it is deployed."""
