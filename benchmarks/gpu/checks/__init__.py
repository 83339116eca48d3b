"""What the stage `check` tries, part by part."""
