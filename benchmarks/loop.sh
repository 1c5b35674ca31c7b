#!/bin/bash
# A script as people write it: jq reads the pid, kill -0 checks it. Argument: STATE_DIR.
for lock in "$1"/agents/*/sessions/*.jsonl.lock; do
  pid=$(jq -r '.pid // empty' "$lock" 2>/dev/null)
  if [ -z "$pid" ] || ! kill -0 "$pid" 2>/dev/null; then
    echo "$lock"
  fi
done
