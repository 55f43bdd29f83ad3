# Sourced by ./up: Flink (a JobManager and TaskManagers of one slot), and the pool that starts Beam's Python workers for it.

is_master() { # PORT
    get "$1" /overview >/dev/null
}

# shellcheck disable=SC2207
flags=(-XX:+UseSerialGC $(<"$here/flink/opens") -Dorg.slf4j.simpleLogger.showDateTime=true
    '-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS' -Dorg.slf4j.simpleLogger.showThreadName=false)

start_flink() {
    local number rest='' fresh='' python=${EVENTVEIL_PYTHON:-python3} deadline
    need_java
    running pool >/dev/null || need_eventveil
    fetch flink copy-dependencies 1.19-
    printf '%s\n' "$jars" >flink.jars
    if running flink >/dev/null && [[ -f flink/conf/flink-conf.yaml ]]; then
        rest=$(sed -n 's/^rest.port: //p' flink/conf/flink-conf.yaml)
        await flink is_master "$rest" || fail 1 "flink runs and does not answer: $here/down ends it"
        say "flink runs already"
    else
        # TaskManagers of a master that has gone look for it where it was.
        end_all taskmanager
        start_job_manager
        fresh=yes
    fi
    deadline=$((SECONDS + seconds))
    # Once more: one that was killed just now may have been seen to run.
    if ! start_task_managers && ! start_task_managers; then
        for ((number = 1; number <= task_managers; number++)); do
            running "taskmanager-$number" >/dev/null || give_up "taskmanager-$number"
        done
        give_up flink
    fi
    printf '127.0.0.1:%s\n' "$rest" >flink.address
    start_pool
    begun=()
}

start_task_managers() { # those that do not run; fails when one ends before all have registered, or at the `deadline`
    local number
    for ((number = 1; number <= task_managers; number++)); do
        ! running "taskmanager-$number" >/dev/null || continue
        keep_log "taskmanager-$number"
        [[ -z $fresh ]] || begun+=("taskmanager-$number")
        launch "taskmanager-$number" java "${flags[@]}" -Xms64m -Xmx512m -XX:MaxDirectMemorySize=320m -XX:MaxMetaspaceSize=256m \
            -cp "$jars/*" org.apache.flink.runtime.taskexecutor.TaskManagerRunner \
            --configDir "$home/flink/conf" "-Dtaskmanager.resource-id=taskmanager-$number"
    done
    until have_registered 2>/dev/null; do
        running flink >/dev/null && ((SECONDS < deadline)) || return 1
        for ((number = 1; number <= task_managers; number++)); do
            running "taskmanager-$number" >/dev/null || return 1
        done
        sleep 0.1
    done
}

have_registered() { # as many TaskManagers as there should be, and these very processes: for a while the master counts one that was killed
    local answer registered number
    answer=$(get "$rest" /overview) || return 1
    registered=$(sed -n 's/.*"taskmanagers":\([0-9]*\).*/\1/p' <<<"$answer")
    ((${registered:-0} >= task_managers)) || return 1
    for ((number = 1; number <= task_managers; number++)); do
        running "taskmanager-$number" >/dev/null && grep -q 'Successful registration at resource manager' "taskmanager-$number.log" || return 1
    done
}

start_job_manager() { # sets `rest`, and puts itself under `begun`
    local text try rpc
    end flink
    # What is left of jobs of a master that was killed. Savepoints and checkpoints stay: they are what one goes on from.
    rm -rf flink/tmp
    mkdir -p flink/{conf,checkpoints,savepoints,tmp}
    for try in 1 2 3; do
        rest=$(free_port) rpc=$(free_port)
        text=$(<"$here/flink/flink-conf.yaml")
        text=${text//@HOME@/$home} text=${text//@REST@/$rest}
        printf '%s\n' "${text//@RPC@/$rpc}" >flink/conf/flink-conf.yaml
        keep_log flink
        begun=(flink)
        launch flink java "${flags[@]}" -Xms64m -Xmx400m -cp "$jars/*" \
            org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint --configDir "$home/flink/conf" --executionMode cluster
        ! await flink is_master "$rest" || return 0
        # Somebody took a port between our look and Flink's.
        if running flink >/dev/null || ((try == 3)) || ! grep -qE 'Address already in use|BindException|port range' flink.log; then give_up flink; fi
    done
}

need_eventveil() {
    command -v "$python" >/dev/null || fail 69 "$python is not installed; name a Python that has eventveil with EVENTVEIL_PYTHON"
    "$python" -c 'import eventveil.pipeline' 2>/dev/null ||
        fail 69 "$python does not have eventveil: name one that has it with EVENTVEIL_PYTHON"
}

start_pool() {
    local chosen
    if running pool >/dev/null && [[ -f pool.address ]]; then
        say "the worker pool runs already"
        return
    fi
    end pool
    chosen=$(free_port)
    keep_log pool
    begun+=(pool)
    launch pool "$python" -c 'import sys; from eventveil.pipeline.cli.worker_pool import start; sys.exit(start(sys.argv[1]))' "127.0.0.1:$chosen"
    await pool is_taken "$chosen" || give_up pool
    printf '127.0.0.1:%s\n' "$chosen" >pool.address
}
