"""The server of ``consisti2v serve``: one queue, a worker process per device, the video API, and a page to look at."""
