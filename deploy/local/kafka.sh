# Sourced by ./up: Kafka, one broker.

knows_a_broker() ( # PORT: asks for metadata of no topic; before it has joined itself a broker names no broker
    exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf '\0\0\0\16\0\3\0\1\0\0\0\1\377\377\0\0\0\0' >&3
    count=''
    for byte in {1..12}; do # size, correlation id, number of brokers
        IFS= read -r -d '' -n 1 -t 2 -u 3 value || exit 1
        ((byte <= 8)) || count+=$value # a NUL adds nothing
    done
    [[ -n $count ]]
)

start_kafka() {
    local controller text try last=''
    need_java
    [[ ! -f kafka.properties ]] || last=$(sed -n 's/^advertised.listeners=.*:\([0-9]*\)$/\1/p' kafka.properties)
    if running kafka >/dev/null; then
        [[ -z $port || $port == "$last" ]] || fail 1 "it runs already, and not on port $port: kafka://127.0.0.1:$last"
        # Another `up` may just be starting it, or was killed over it.
        await kafka knows_a_broker "$last" || fail 1 "kafka runs and does not answer: $here/down ends it"
        printf 'kafka://127.0.0.1:%s\n' "$last" >kafka.address
        say "kafka runs already"
        return
    fi
    fetch kafka copy-dependencies
    if [[ -n $port ]] && is_taken "$port"; then fail 1 "port $port is taken by another process"; fi
    for try in 1 2 3; do
        local chosen=${port:-$last}
        if [[ -z $chosen ]] || is_taken "$chosen"; then chosen=$(free_port); fi
        controller=$(free_port)
        text=$(<"$here/kafka/kafka.properties")
        text=${text//@PORT@/$chosen}
        printf '%s\n' "${text//@CONTROLLER@/$controller}" >kafka.properties
        keep_log kafka
        if [[ ! -f kafka-data/formatted ]]; then
            rm -rf kafka-data
            java "${quick[@]}" -Xmx128m -cp "$jars/*" kafka.tools.StorageTool format \
                -t MkU3OEVBNTcwNTJENDM2Qk -c kafka.properties >kafka.log 2>&1 || give_up kafka
            : >kafka-data/formatted
        fi
        begun=(kafka)
        launch kafka java "${quick[@]}" -Xms128m -Xmx384m "-Dlog4j2.configurationFile=$here/kafka/log4j2.properties" \
            -cp "$jars/*" kafka.Kafka kafka.properties
        if await kafka knows_a_broker "$chosen"; then
            printf 'kafka://127.0.0.1:%s\n' "$chosen" >kafka.address
            begun=()
            return
        fi
        # Somebody took a port between our look and the broker's.
        if running kafka >/dev/null || ((try == 3)) || ! grep -q 'Address already in use' kafka.log; then give_up kafka; fi
        [[ -z $port ]] || fail 1 "port $port was taken meanwhile"
        last=''
    done
}
