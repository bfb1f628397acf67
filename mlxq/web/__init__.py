"""The web page. It runs in a separate process, so that it never slows the gateway or the engines."""
