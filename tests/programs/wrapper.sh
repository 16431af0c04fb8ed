#!/bin/sh
# A worker behind a shell that stays.
"$PROGRAM" "$@"
