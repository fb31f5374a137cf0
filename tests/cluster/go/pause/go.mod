module twinpod.dev/pause

go 1.26.0
