"""Wait for an engine and ask it once: `ask_once.py URL KEY`; prints the status of the answer."""

import sys
import time
import urllib.request

url, key = sys.argv[1:]
for _ in range(900):
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5)
        break
    except OSError:
        time.sleep(0.2)
head = {"authorization": f"Bearer {key}", "content-type": "application/json"}
body = b'{"model": "fast", "max_tokens": 3, "messages": [{"role": "user", "content": "Hi"}]}'
answer = urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", body, head), timeout=200)
print(answer.status)
