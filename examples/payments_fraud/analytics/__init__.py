"""Volume by minute and country, live and as a columnar file."""
