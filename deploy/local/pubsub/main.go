// Pub/Sub in memory, on 127.0.0.1 and the port that is given.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"cloud.google.com/go/pubsub/v2/pstest"
)

func main() {
	port, err := strconv.Atoi(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "not a port")
		os.Exit(2)
	}
	server := pstest.NewServerWithPort(port)
	fmt.Println(server.Addr)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, os.Interrupt, syscall.SIGTERM)
	<-ended
	server.Close()
}
