#!/bin/sh
# Not a worker.
echo "usage: talker FILE"
echo "talker: bad option" >&2
exit 2
