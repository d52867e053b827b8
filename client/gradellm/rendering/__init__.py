"""What a terminal shows: styles, bars and heatmaps."""
