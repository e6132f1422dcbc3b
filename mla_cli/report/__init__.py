"""`mla report`: one HTML file about a run or an ablation that opens from disk, and its figures beside it."""
