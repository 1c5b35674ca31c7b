#!/bin/bash
# What people write themselves: jq for the pid, kill -0 for the rest. Argument: STATE_DIR.
for lock in "$1"/agents/*/sessions/*.jsonl.lock; do
  pid=$(jq -r '.pid // empty' "$lock" 2>/dev/null)
  if [ -z "$pid" ] || ! kill -0 "$pid" 2>/dev/null; then
    echo "$lock"
  fi
done
