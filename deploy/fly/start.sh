#!/bin/sh
# One machine for each process group node1, node2, node3 (see fly.toml), so that their names stay.
set -eu

name() { echo "$1.process.$FLY_APP_NAME.internal:7100"; }

RAFTSQLITE_DEFAULT=$(cat <<JSON
{"NAME": "/srv/data/db.sqlite3",
 "OPTIONS": {"node": "$(name "$FLY_PROCESS_GROUP")",
             "peers": ["$(name node1)", "$(name node2)", "$(name node3)"],
             "tls": {"certificate": "/run/raft/node.pem", "key": "/run/raft/node.key", "authority": "/run/raft/authority.pem"}}}
JSON
)
export RAFTSQLITE_DEFAULT

chown site:site /srv/data
chown -R site:site /run/raft
exec setpriv --reuid=site --regid=site --clear-groups \
  gunicorn --bind "[::]:8000" --workers 2 --threads 4 project.wsgi
