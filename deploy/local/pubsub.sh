# Sourced by ./up: Pub/Sub in memory. Google's emulator where gcloud has it, else what Google tests its own Go client with.

speaks_http2() ( # PORT: to the preface of HTTP/2 it answers with its settings, as every server of gRPC does
    exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0' >&3
    for byte in {1..4}; do # three of length, one of type
        IFS= read -r -d '' -n 1 -t 5 -u 3 value || exit 1
    done
    [[ $value == $'\4' ]]
)

emulator() { # the jar of Google's emulator; fails where it is not installed
    local folder jar
    folder=$(command -v gcloud) || return 1
    folder=$(gcloud_root "$folder") || return 1
    for jar in "$folder"/platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar; do
        [[ -f $jar ]] && echo "$jar" && return
    done
    return 1
}

gcloud_root() { # PATH of gcloud, which may be a link, or a wrapper of Debian's
    local path=$1 folder
    while [[ -L $path ]]; do
        folder=$(cd "$(dirname "$path")" && pwd)
        path=$(readlink "$path")
        [[ $path == /* ]] || path=$folder/$path
    done
    for folder in "$(cd "$(dirname "$path")/.." && pwd)" /usr/lib/google-cloud-sdk; do
        [[ -d $folder/platform ]] && echo "$folder" && return
    done
    return 1
}

build_pubsub() { # sets `built`: the program, in the cache under what it was built from
    local mark
    command -v go >/dev/null ||
        fail 69 "neither Google's emulator (gcloud components install pubsub-emulator) nor Go, of which another is built, is installed"
    mark=$(cat "$here"/pubsub/{go.mod,go.sum,main.go} | cksum | tr ' ' -)
    built=$cache/pubsub-$mark
    [[ -x $built ]] && return
    say "== building Pub/Sub into $built, once"
    unfinished=$(mktemp "$cache/building-XXXXXX")
    (cd "$here/pubsub" && GOFLAGS=-mod=readonly go build -o "$unfinished" .) >"$home/fetch.log" 2>&1 ||
        fail 69 "Go could not build Pub/Sub: all it said is in $home/fetch.log"
    mv "$unfinished" "$built"
    unfinished=''
}

start_pubsub() {
    local chosen jar command
    if running pubsub >/dev/null && [[ -f pubsub.address ]]; then
        say "pubsub runs already"
        return
    fi
    end pubsub
    chosen=$(free_port)
    if jar=$(emulator); then
        need_java
        command=(java "${quick[@]}" -Xmx256m -jar "$jar" --host=127.0.0.1 "--port=$chosen")
    else
        build_pubsub
        command=("$built" "$chosen")
    fi
    keep_log pubsub
    begun=(pubsub)
    launch pubsub "${command[@]}"
    await pubsub speaks_http2 "$chosen" || give_up pubsub
    printf '127.0.0.1:%s\n' "$chosen" >pubsub.address
    begun=()
}
