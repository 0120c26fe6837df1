"""Models: a small one to try things on, and the check of a folder that is to be trained."""
