#!/bin/sh
# A worker that the dynamic loader is called with.
exec "$LOADER" "$PROGRAM" "$@"
