#!/bin/sh
# Not a worker: it never stops talking.
exec yes "something else"
