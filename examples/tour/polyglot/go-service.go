// SPDX-License-Identifier: Apache-2.0

// The Go service: standard library only. net/http honours HTTP_PROXY, so calling another
// service by its name goes through the pod's sidecar.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func ping(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("content-type", "application/json")
	json.NewEncoder(w).Encode(map[string]string{"language": "go"})
}

func call(w http.ResponseWriter, r *http.Request) {
	other := r.PathValue("other")
	client := http.Client{Timeout: 5 * time.Second}
	answer, err := client.Get(fmt.Sprintf("http://%s-service/%s/ping", other, other))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	w.Header().Set("content-type", "application/json")
	w.WriteHeader(answer.StatusCode)
	io.Copy(w, answer.Body)
}

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /go/ping", ping)
	mux.HandleFunc("GET /go/call/{other}", call)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "ok\n")
	})
	address := net.JoinHostPort(env("POD_IP", "127.0.0.1"), env("PORT", "8080"))
	server := http.Server{Addr: address, Handler: mux}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	go func() {
		<-stop.Done()
		server.Shutdown(context.Background())
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
}
