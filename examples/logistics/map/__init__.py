"""Map: where every parcel is and which tours are driven, as a live page and for the drivers."""
