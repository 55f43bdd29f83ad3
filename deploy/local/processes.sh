# Sourced by ./up and ./down: what runs in a home folder. A file NAME.pid there holds a process id and when that process
# started, so that another process that was given the same id later is never taken for ours.

started() { # ID: when the process started; nothing when there is none
    local id=$1 line threads
    if [[ -d /proc/self ]]; then
        { read -r line <"/proc/$id/stat"; } 2>/dev/null || return 0
        # Its name, in brackets, may hold anything.
        # shellcheck disable=SC2086
        set -- ${line##*) }
        # A zombie has ended, but not while threads of it hold their ports.
        threads=("/proc/$id/task"/*)
        [[ $1 == Z && ${#threads[@]} -le 1 ]] || echo "${20}"
    else
        ps -o lstart= -p "$id" 2>/dev/null | tr -s ' ' '-'
    fi
}

remember() { # NAME ID
    printf '%s %s\n' "$2" "$(started "$2")" >"$1.pid.new"
    mv "$1.pid.new" "$1.pid"
}

running() { # NAME: its process id; fails when it does not run
    local id when
    { read -r id when <"$1.pid"; } 2>/dev/null || return 1
    [[ -n $when && $(started "$id") == "$when" ]] && echo "$id"
}

end() { # NAME [SECONDS]: TERM, and KILL for what still runs after SECONDS; comes back when it runs no more
    local id deadline=$((SECONDS + ${2:-20}))
    if id=$(running "$1"); then
        kill -TERM "$id" 2>/dev/null || true
        kill -CONT "$id" 2>/dev/null || true # one that is stopped hears nothing
        while running "$1" >/dev/null; do
            if ((SECONDS >= deadline)); then kill -KILL "$id" 2>/dev/null || true; fi
            sleep 0.1
        done
    fi
    rm -f "$1.pid" "$1.address"
}

end_all() { # PREFIX: what is called PREFIX-...
    local file
    for file in "$1"-*.pid; do
        [[ ! -f $file ]] || end "${file%.pid}"
    done
}
