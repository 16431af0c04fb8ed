#!/bin/sh
# Not a worker: it reads and says nothing.
echo "waiting" >&2
exec cat >/dev/null
