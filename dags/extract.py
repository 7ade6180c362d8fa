"""The DAGs of every source: copy this file into your DAGs folder, and your sources into a folder `sources` beside it.

Another folder is named by `sources` in the section [extract] of airflow.cfg, or by the environment variable
EXTRACT_SOURCES.
"""

from airflow_extract_provider.config import sources_folder
from airflow_extract_provider.dag_templates import make_dags

globals().update(make_dags(sources_folder()))
