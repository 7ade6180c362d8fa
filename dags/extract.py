"""The DAGs of every source: copy this file into your DAGs folder, and your sources into a folder `sources` beside it.

The environment variable EXTRACT_SOURCES names another folder.
"""

import os

from airflow_extract_provider.dag_templates import make_dags

globals().update(make_dags(os.environ.get("EXTRACT_SOURCES", "sources")))
