# shellcheck shell=bash
# What scripts/run and scripts/test share: messages, and environments that are
# made once, repaired after an interrupted set-up, and left alone otherwise.
# Needs only bash 3.2 and POSIX tools.

: "${root:?the project directory, set by the script that reads this file}"

say() { printf 'sessionproxy: %s\n' "$*" >&2; }

# Prints the first Python >= 3.11 that can make virtual environments; else says what to do.
find_python() {
  local name version without_venv="" too_old=""
  for name in python3.13 python3.12 python3.11 python3; do
    # A name on PATH may still be a version manager's empty shim, so it is asked.
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    if ! "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      too_old="$name is $version"
    elif ! "$name" -c 'import ensurepip, venv' 2>/dev/null; then
      without_venv=${without_venv:-$version}
    else
      command -v "$name"
      return 0
    fi
  done
  if [ -n "$without_venv" ]; then
    say "Python $without_venv is here, but not its venv module." \
      "On Debian and Ubuntu: apt-get install python$without_venv-venv"
  else
    say "Python 3.11 or newer is needed, and none of python3.13, python3.12, python3.11," \
      "python3 is one${too_old:+ ($too_old)}."
  fi
  return 1
}

# A stamp is written last and removed first: an environment without one is unfinished.
# Its first line is the place, since scripts of an environment hold absolute paths.
stamp_of() { # DIRECTORY CONTENT...
  printf '%s\n' "$@"
}

has_stamp() { # DIRECTORY CONTENT...
  [ -f "$1/.stamp" ] && [ "$(cat "$1/.stamp")" = "$(stamp_of "$@")" ]
}

# The environment at DIRECTORY has what the pip arguments name; CONTENT tells when to redo it.
make_venv() { # DIRECTORY CONTENT PIP_ARGUMENT...
  local directory=$1 content=$2 python first=""
  shift 2
  if [ -f "$directory/.stamp" ]; then IFS= read -r first <"$directory/.stamp" || true; fi
  rm -f "$directory/.stamp"
  if [ "$first" != "$directory" ] || [ ! -x "$directory/bin/python" ]; then
    python=$(find_python) || return 1
    "$python" -m venv --clear "$directory" >&2 || return 1
  fi
  "$directory/bin/python" -m pip install -qq --no-input --disable-pip-version-check "$@" >&2 ||
    return 1
  stamp_of "$directory" "$content" >"$directory/.stamp"
}

# Two set-ups at once take turns, where the system has flock.
lock_setup() {
  mkdir -p "$root/.cache"
  exec 9>"$root/.cache/setup.lock"
  if command -v flock >/dev/null && ! flock --nonblock 9; then
    say "waiting for another set-up of this directory"
    flock 9
  fi
}

unlock_setup() { exec 9>&-; }

# .venv has the project, and with EXTRA (test, docs or empty) what that extra names.
# One that has more serves whoever asks for less too: test has all that docs names.
ensure_project() { # EXTRA
  local extra=$1 directory=$root/.venv sum status=0
  sum=$(cksum <"$root/pyproject.toml")
  project_is_ready() {
    [ -x "$directory/bin/python" ] &&
      { has_stamp "$directory" "test $sum" || has_stamp "$directory" "$extra $sum" ||
        { [ -z "$extra" ] && has_stamp "$directory" "docs $sum"; }; }
  }
  project_is_ready && return 0
  lock_setup
  if ! project_is_ready; then
    say "setting up .venv (once, and when pyproject.toml has changed)"
    make_venv "$directory" "$extra $sum" --editable "$root${extra:+[$extra]}" || status=1
  fi
  unlock_setup
  return "$status"
}
