# Sourced by ./up: Apicurio Registry, which speaks the REST API of Confluent's.

lists_subjects() { # PORT
    get "$1" /apis/ccompat/v7/subjects >/dev/null
}

start_registry() {
    local chosen
    if running registry >/dev/null && [[ -f registry.address ]]; then
        say "the registry runs already"
        return
    fi
    need_java
    end registry # begun by an `up` that was killed
    fetch registry unpack-dependencies
    chosen=$(free_port)
    keep_log registry
    begun=(registry)
    # A schema is looked up by what it says, as at Confluent, and not by how it is written.
    launch registry java "${quick[@]}" -Xmx256m -Dquarkus.http.host=127.0.0.1 "-Dquarkus.http.port=$chosen" \
        -Dregistry.ccompat.use-canonical-hash=true \
        -cp "$jars/*:$jars/lib/*" io.quarkus.runner.GeneratedMain
    await registry lists_subjects "$chosen" || give_up registry
    printf 'http://127.0.0.1:%s/apis/ccompat/v7\n' "$chosen" >registry.address
    begun=()
}
