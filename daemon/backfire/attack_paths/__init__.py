"""How real tools hand a region to their model: which crop, at which size, with which padding."""
