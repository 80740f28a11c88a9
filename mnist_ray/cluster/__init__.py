"""Work on Ray: sessions, trainer, tuner, and the pool of workers; the only room that imports Ray.

May import report, export, tracking, and every room below them.
"""

import logging

# In a notebook without ipywidgets, Ray asks for them several times, first when it is imported.
logging.getLogger("ray.widgets").setLevel(logging.ERROR)
