// SPDX-License-Identifier: Apache-2.0

package ref

import (
	"context"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc"
)

// Server is a running part of the mesh. Stop it, or let the test's clean-up do so.
type Server struct {
	Name string
	URLs []string // where it listens, in the order asked for

	stop func()
}

// URL is the first (for a manager: the local, Unix) address.
func (s *Server) URL() string { return s.URLs[0] }

// Stop ends the part as a killed process would: streams break, nothing is
// closed or unregistered towards others. It returns when the listeners are
// gone; goroutines of the reference's chains may live on for a moment.
func (s *Server) Stop() { s.stop() }

// Serve runs a gRPC server on the addresses: unix:///path, or tcp://host:port
// where port 0 picks one. The context given to build is the chain context of
// the part, cancelled by Stop. It serves our parts too: anything that registers
// itself on a grpc.ServiceRegistrar.
func Serve(t testing.TB, name string, options []grpc.ServerOption, addresses []string, build func(ctx context.Context, urls []string) func(*grpc.Server)) *Server {
	t.Helper()
	listeners := make([]net.Listener, len(addresses))
	urls := make([]string, len(addresses))
	for i, address := range addresses {
		listeners[i], urls[i] = listen(t, address)
	}
	ctx, cancel := context.WithCancel(context.Background())
	register := build(ctx, urls)
	server := grpc.NewServer(options...)
	register(server)

	var serving sync.WaitGroup
	for _, l := range listeners {
		serving.Go(func() {
			if err := server.Serve(l); err != nil {
				t.Errorf("%s stopped serving on %s: %v", name, l.Addr(), err)
			}
		})
	}
	s := &Server{Name: name, URLs: urls}
	s.stop = sync.OnceFunc(func() {
		cancel()
		server.Stop()
		serving.Wait()
	})
	t.Cleanup(s.Stop)
	return s
}

// Socket is a fresh Unix socket address in a directory of the test's own.
func Socket(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "i") // t.TempDir would exceed the 108 bytes of a socket path
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return "unix://" + filepath.Join(dir, "s")
}

// Loopback is a TCP address on a port of the kernel's choice.
const Loopback = "tcp://127.0.0.1:0"

func listen(t testing.TB, address string) (net.Listener, string) {
	t.Helper()
	u := parse(t, address)
	if u.Scheme == "unix" {
		l, err := net.Listen("unix", u.Path)
		must(t, err)
		return l, address
	}
	l, err := net.Listen("tcp", u.Host)
	must(t, err)
	return l, "tcp://" + l.Addr().String()
}

func parse(t testing.TB, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	must(t, err)
	return u
}
