# Sourced by ./up: Beam's expansion service for Java, with Kafka's source. What it gives runs inside Flink's TaskManagers, whose jars it shares.

# shellcheck disable=SC2154
start_java() {
    local chosen
    need_java
    fetch flink copy-dependencies 1.19-
    if running java >/dev/null && [[ -f java.address ]]; then
        say "the expansion service for Java runs already"
        return
    fi
    end java
    chosen=$(free_port)
    keep_log java
    begun+=(java)
    # All that it needs is where it runs: of its jars none is sent along with a job, but for a file there must be.
    launch java java "${flags[@]}" -Xmx256m -cp "$jars/*" org.apache.beam.sdk.expansion.service.ExpansionService \
        "$chosen" --defaultEnvironmentType=EMBEDDED "--filesToStage=$jars/pom.xml"
    await java is_taken "$chosen" || give_up java
    printf '127.0.0.1:%s\n' "$chosen" >java.address
    begun=()
}
