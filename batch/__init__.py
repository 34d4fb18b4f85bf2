"""Many photos in one command: a listing in, a folder of videos and their record out."""
