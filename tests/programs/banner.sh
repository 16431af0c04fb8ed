#!/bin/sh
# Says something first, as a login shell may, and then becomes the worker.
echo "Welcome to this machine."
echo "Last login: never"
exec "$PROGRAM"
