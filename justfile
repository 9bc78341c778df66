# MailFlow's commands. Without just: `uv run just RECIPE`; it comes with the development dependencies.

set positional-arguments
set quiet
set shell := ["bash", "-euo", "pipefail", "-c"]

# How many checks run at once: `JOBS=2 just check-all` or `just jobs=2 check-all`
jobs := env('JOBS', num_cpus())
tasks := "uv run python deploy/local/tasks.py"
workshop := "uv run python deploy/local/workshop.py"
containers := "uv run python deploy/local/containers.py"

# List all recipes
[group('run')]
help:
    {{ just_executable() }} --justfile {{ quote(justfile()) }} --list --unsorted

# Start everything on this machine: broker, both services, an inbox that shows the mails (Ctrl-C stops it)
[group('run')]
up:
    exec uv run python deploy/local/up.py

# The same, started anew whenever the code changes, with debug logs
[group('run')]
dev:
    LOG_LEVEL="${LOG_LEVEL:-DEBUG}" exec uv run watchfiles --filter python 'python deploy/local/up.py' contracts user_svc email_svc deploy/local

# Run KrakenD in front of `just up`, on port 8000 (KRAKEND_BIN, krakend on the path, or Docker)
[group('run')]
gateway:
    exec uv run python deploy/local/gateway.py

# Register somebody (a fresh address unless you give one) and print the answer
[group('run')]
create-user email="" name="Ada Lovelace":
    {{ tasks }} create-user "$@"

# Register somebody over the bus (a fresh address unless you give one) and print the answer (nats CLI)
[group('run')]
rpc-create email="" name="Ada Lovelace":
    {{ tasks }} rpc-create "$@"

# Against `just up`: people register while the mail server fails and recovers; says what to look at (--every 2 --well 10)
[group('run')]
demo *args:
    uv run python deploy/local/demo.py "$@"

# Ask broker and services whether they are well, one line each
[group('run')]
health-check:
    {{ tasks }} health-check

# Build the wheel and check that both services, or the named one (user, email), load from it alone
[group('check')]
build service="":
    {{ workshop }} build "$@"

# Run all tests, or those of one service (`just test email`); other arguments go to pytest
[group('check')]
test *args:
    {{ workshop }} test "$@"

# Run the tests that need nothing but Python: unit and property
[group('check')]
test-unit *args:
    uv run pytest tests/unit tests/property "$@"

# Run the tests against a real broker and a real SMTP server
[group('check')]
test-integration *args:
    uv run pytest tests/integration "$@"

# Run the tests of the whole system: both services as processes
[group('check')]
test-e2e *args:
    uv run pytest tests/e2e "$@"

# Run all tests and show what they do not reach
[group('check')]
test-cover *args:
    uv run pytest --cov=contracts --cov=user_svc --cov=email_svc --cov-report=term-missing "$@"

# Check style, format and types side by side; change nothing
[group('check')]
lint:
    {{ just_executable() }} --justfile {{ quote(justfile()) }} --jobs {{ jobs }} _lint

[parallel]
_lint: _lint-code _lint-just typecheck

_lint-code:
    uv run ruff check && uv run ruff format --check

_lint-just:
    {{ just_executable() }} --justfile {{ quote(justfile()) }} --fmt --check

# Format the code and mend what ruff can mend
[group('check')]
fmt:
    uv run ruff check --fix && uv run ruff format
    {{ just_executable() }} --justfile {{ quote(justfile()) }} --fmt

# Check the types
[group('check')]
typecheck:
    uv run mypy

# Do all checks side by side: lint and tests
[group('check')]
check-all:
    {{ just_executable() }} --justfile {{ quote(justfile()) }} --jobs {{ jobs }} _check-all

[parallel]
_check-all: lint test

# Write the contracts' documents anew: AsyncAPI and JSON Schemas, from the code
[group('check')]
docs:
    uv run python deploy/documents.py

# Write the broker's users anew (deploy/nats-accounts.conf), after a change of streams or subjects
[group('check')]
accounts:
    uv run python -m contracts.permissions > deploy/nats-accounts.conf

# Make Grafana's dashboards anew; a second time changes nothing
[group('check')]
dashboards:
    uv run python deploy/grafana/dashboards.py

# Take the pictures of the console anew: deploy/screenshots, some three minutes (needs Chromium)
[group('check')]
screenshots *args:
    uv run python -m tests.browser.screenshots "$@"

# Check Prometheus' configuration and rules, and test the alerts (promtool)
[group('check')]
rules-check:
    command -v promtool >/dev/null || { echo "this needs promtool: apt-get install prometheus" >&2; exit 1; }
    promtool check config deploy/prometheus/prometheus.yml && promtool test rules deploy/prometheus/tests/*.yml

# Break everything under load for a minute and balance the books (--minutes 30 --seed 7 --cluster)
[group('check')]
drill *args:
    exec uv run python -m tests.drill "$@"

# Measure speed beside floors and peers, some ten minutes (--quick, --only MailFlow floor)
[group('check')]
bench *args:
    uv run --group bench python -m tests.bench "$@"

# Measure what 50 open pages of the console cost user_svc, two minutes; fails beyond 10 % (--pages 50 --rounds 5)
[group('check')]
bench-pages *args:
    uv run python -m tests.bench.open_pages "$@"

# Change the pure cores in small ways and count what their tests notice: 90 % of each file, or of those named
[group('check')]
mutants *files:
    uv run --group mutation python -m tests.mutation.mutants "$@"

# Look up the services' locked dependencies among the known vulnerabilities (pip-audit)
[group('check')]
audit-dependencies *args:
    uv export --no-dev --locked --no-hashes --no-emit-project --quiet | uv run pip-audit --no-deps --disable-pip -r /dev/stdin "$@"

# Build for one service after the other
[group('check')]
build-seq: (build "user") (build "email")

# Run the suites one after another, the fast ones first; the first that fails ends it
[group('check')]
test-seq: (test "tests/unit") (test "tests/property") (test "tests/integration") (test "tests/e2e") (test "tests/chaos") (test "tests/containers") (test "tests/gateway") (test "tests/browser") (test "tests/bench")

# Lint one thing after another; the first that fails ends it
[group('check')]
lint-seq: _lint-code _lint-just typecheck

# Show how many checks run at once
[group('check')]
show-jobs:
    echo "jobs={{ jobs }}: JOBS=2 just check-all, or just jobs=2 check-all"

# Show the figures of both services that tell how MailFlow is
[group('look')]
monitor-metrics:
    uv run python deploy/local/figures.py

# Run a Prometheus beside `just up`, with the shipped rules (needs the `prometheus` command)
[group('look')]
prometheus:
    exec uv run python deploy/local/prometheus.py

# Show the circuit breaker: state, reason, what the broker shows
[group('look')]
breaker:
    {{ tasks }} admin user /circuit-breaker

# Show where every event is; a gap means that something is missing
[group('look')]
ledger:
    {{ tasks }} admin user /ledger

# Show the mail queue: depth, age, how long it takes to drain
[group('look')]
backlog:
    {{ tasks }} admin user /queue

# Show the rate limit: tokens, throttling
[group('look')]
rate-limit:
    {{ tasks }} admin email /rate-limit

# List dead letters; the query filters, e.g. `just dead-letters 'state=dead&code=550'`
[group('look')]
dead-letters query="":
    {{ tasks }} admin user "/dead-letters?$1"

# List what operators did
[group('look')]
audit:
    {{ tasks }} admin user /audit

# Stop all mail: open the breaker, until further notice or for a time like 10m
[group('act')]
breaker-open for="":
    {{ tasks }} admin user /circuit-breaker/open '{{ if for == "" { "{}" } else { '{"for": "' + for + '"}' } }}'

# Let mail go on: close the breaker
[group('act')]
breaker-close:
    {{ tasks }} admin user /circuit-breaker/close '{}'

# Simulate a downtime of the mail server, on all replicas
[group('act')]
downtime for="30s":
    {{ tasks }} admin email /downtime '{"for": "{{ for }}"}'

# End the downtime that is on
[group('act')]
downtime-end:
    {{ tasks }} admin email /downtime '{"end": true}'

# Count the dead letters that a replay would send again
[group('act')]
replay-count filter="{}":
    {{ tasks }} admin user /dead-letters/replay '{"filter": {{ filter }}, "dry_run": true}'

# Send dead letters again: all of them, or a filter like '{"code": 550}', so many a second
[confirm("Send these mails again? `just replay-count` says how many they are. [y/N]")]
[group('act')]
replay filter="{}" per_second="100":
    {{ tasks }} admin user /dead-letters/replay '{"filter": {{ filter }}, "per_second": {{ per_second }}}'

# Show how far the replay is
[group('act')]
replay-progress:
    {{ tasks }} admin user /dead-letters/replay

# Stop the replay that is running
[group('act')]
replay-stop:
    {{ tasks }} admin user /dead-letters/replay/stop '{}'

# Report all streams: messages, bytes, consumers (nats CLI)
[group('look')]
streams:
    {{ tasks }} nats stream report

# Show one stream: settings and state (nats CLI)
[group('look')]
stream name="WELCOME_EMAILS":
    {{ tasks }} nats stream info "$1"

# Report the consumers of a stream: waiting, unprocessed, redelivered (nats CLI)
[group('look')]
consumers name="WELCOME_EMAILS":
    {{ tasks }} nats consumer report "$1"

# Show the mail queue's consumer; a pause of it is an open circuit breaker (nats CLI)
[group('look')]
queue:
    {{ tasks }} nats consumer info WELCOME_EMAILS email-svc

# List the replicas that answer over the bus (nats CLI)
[group('look')]
rpc-ls:
    {{ tasks }} nats service ls

# Show the bus service: endpoints, schemas, how many requests and errors (nats CLI)
[group('look')]
rpc-info:
    {{ tasks }} nats service info mailflow-users

# Show how each replica of the bus service does: requests, errors, processing time (nats CLI)
[group('look')]
rpc-stats:
    {{ tasks }} nats service stats mailflow-users

# List the keys of the bucket that holds the users (nats CLI)
[group('look')]
users-bucket:
    {{ tasks }} nats kv ls USERS

# List the keys of a bucket (nats CLI)
[group('look')]
kv name="CONTROL":
    {{ tasks }} nats kv ls "$1"

# Install the nats CLI into .tools (needs Go), and say where the other tools come from
[group('care')]
tools:
    {{ workshop }} tools

# Show the versions of all tools
[group('care')]
versions:
    {{ workshop }} versions

# Remove the local run's data (.mailflow) and all caches
[confirm("Remove .mailflow (all local registrations and mails) and the caches? [y/N]")]
[group('care')]
clean:
    {{ workshop }} clean

# Remove what `just tools` installed
[confirm("Remove .tools? [y/N]")]
[group('care')]
clean-tools:
    {{ workshop }} clean-tools

# Remove everything that this tree did not come with: data, caches, tools, the virtual environment
[confirm("Remove all local registrations and mails, caches, tools and .venv? [y/N]")]
[group('care')]
clean-all:
    {{ workshop }} clean-all

# Build and start everything in containers, or these services; say where it is and register somebody
[group('containers')]
quick-start *services:
    {{ containers }} quick-start "$@"

# Build the image
[group('containers')]
docker-build *args:
    {{ containers }} compose build "$@"

# Start the containers, or these services, and wait until they are healthy
[group('containers')]
docker-up *services:
    {{ containers }} compose up --detach --wait "$@"

# Stop and remove the containers; their data stays
[group('containers')]
docker-down:
    {{ containers }} compose --profile '*' down --remove-orphans

# Show the logs of all containers, or of these services; `--follow` stays
[group('containers')]
docker-logs *args:
    {{ containers }} compose --profile '*' logs "$@"

# List the containers and how they are, also those that have ended
[group('containers')]
docker-ps:
    {{ containers }} compose --profile '*' ps --all

# List the containers and ask broker and services whether they are well
[group('containers')]
status: docker-ps health-check

# Show user_svc's log; `--follow` stays
[group('containers')]
logs-user *args:
    {{ containers }} compose logs "$@" user-svc

# Show email_svc's log; `--follow` stays
[group('containers')]
logs-email *args:
    {{ containers }} compose logs "$@" email-svc

# Show the gateway's log; `--follow` stays
[group('containers')]
logs-gateway *args:
    {{ containers }} compose logs "$@" krakend

# Restart all containers
[group('containers')]
restart-all:
    {{ containers }} compose --profile '*' restart

# Restart user_svc's container
[group('containers')]
restart-user:
    {{ containers }} compose restart user-svc

# Restart email_svc's container
[group('containers')]
restart-email:
    {{ containers }} compose restart email-svc

# Build the image anew and put it in the place of the services that run
[group('containers')]
rebuild:
    {{ containers }} compose up --build --detach --wait user-svc email-svc

# Write random secrets for deploy/compose.cluster.yaml into deploy/.env, once
[group('containers')]
secrets:
    uv run python deploy/make_secrets.py

# Remove the containers, their data and the image
[confirm("Remove the containers, their data (registrations, mails, metrics) and the image? [y/N]")]
[group('containers')]
docker-clean:
    {{ containers }} clean

# Begin anew: remove the containers with their data, the local run's data, and all caches
[confirm("Remove all registrations and mails, of the containers and of the local run? [y/N]")]
[group('containers')]
reset:
    {{ containers }} clean
    {{ workshop }} clean

# Start the broker alone, on the local run's data: for `just backup` and `just restore` without the services
[group('move')]
broker:
    exec uv run python deploy/local/up.py broker

# Save all that the broker at NATS_URL keeps into a new directory, while everything runs
[group('move')]
backup dir:
    uv run python deploy/local/backup.py save "$@"

# Bring a backup back into the broker at NATS_URL, services stopped; `just restore DIR replace` deletes what is there
[group('move')]
restore dir *replace:
    uv run python deploy/local/backup.py restore "$@"

# Move from one broker to a cluster by way of a directory, services stopped; STREAM_REPLICAS says how many copies
[group('move')]
move-to-cluster from_url to_url dir:
    STREAM_REPLICAS="${STREAM_REPLICAS:-3}" uv run python deploy/local/backup.py move "$@"
