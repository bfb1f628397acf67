"""Wait for an engine and ask it once: `ask_once.py URL KEY BODY`; prints the status of the answer."""

import sys
import time
import urllib.parse
import urllib.request

url, key, body = sys.argv[1:]
health = urllib.parse.urljoin(url, "/health")
for _ in range(900):
    try:
        urllib.request.urlopen(health, timeout=5)
        break
    except OSError:
        time.sleep(0.2)
head = {"authorization": f"Bearer {key}", "content-type": "application/json"}
answer = urllib.request.urlopen(urllib.request.Request(url, body.encode(), head), timeout=200)
print(answer.status)
