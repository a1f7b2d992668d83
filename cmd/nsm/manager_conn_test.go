// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/identity/authority"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// seen is an admin API that notes who calls.
type seen struct {
	canned
	caller rpc.Caller
	token  token.Token
	parse  error
}

func (s *seen) Services(r *adminv1.ServicesRequest, stream grpc.ServerStreamingServer[adminv1.ServiceEvent]) error {
	s.caller = rpc.CallerFrom(stream.Context())
	s.token, s.parse = token.Parse(s.caller.Token)
	return s.canned.Services(r, stream)
}

// TestConnectManager goes the whole way to a manager: identity, mutual TLS over
// a Unix socket, token.
func TestConnectManager(t *testing.T) {
	before := slog.Default()
	defer slog.SetDefault(before)
	dir := t.TempDir()
	workloadSocket := "unix://" + filepath.Join(dir, "identity.sock")
	ca, err := authority.New(t.Context(), authority.Config{Node: "a", StateDir: filepath.Join(dir, "state"), Socket: workloadSocket})
	if err != nil {
		t.Fatal(err)
	}
	defer ca.Close()
	t.Setenv(workloadapi.SocketEnv, workloadSocket)

	own, err := ca.Source(t.Context(), "/node/a/manager")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	_, credentials := rpc.MutualTLS(own, own)
	server := rpc.NewServer(rpc.ServerOptions{Credentials: credentials})
	admin := &seen{canned: *mesh()}
	adminv1.RegisterAdminServer(server, admin)
	managerSocket := "unix://" + filepath.Join(dir, "nsm.sock")
	listener, err := rpc.Listen(t.Context(), managerSocket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()

	get := func(args ...string) (string, int) {
		var out bytes.Buffer
		a := newApp()
		a.out, a.err = &out, &out
		root := a.root()
		root.SetArgs(append([]string{"get", "services", "--connect-to", managerSocket}, args...))
		code := a.exit(root.ExecuteContext(t.Context()))
		return out.String(), code
	}
	if out, code := get("--dial-timeout=1m"); code != exitOK || !strings.Contains(out, "\nweb    ETHERNET") {
		t.Fatalf("exit code %d, printed %s", code, out)
	}
	if !strings.HasPrefix(admin.caller.ID, "spiffe://") || admin.parse != nil || admin.token.Subject != admin.caller.ID {
		t.Errorf("called by %q with the token of %q, %v", admin.caller.ID, admin.token.Subject, admin.parse)
	}

	if err := ca.Close(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if out, code := get("--dial-timeout=200ms"); code != exitUnavailable || !strings.Contains(out, nserr.NoIdentity.Code) {
		t.Errorf("without an authority: exit code %d, printed %s", code, out)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("took %v to find that there is no authority", d)
	}
}

// A manager that says nothing, and an authority that is not there, are given up
// after --dial-timeout.
func TestDialTimeout(t *testing.T) {
	before := slog.Default()
	defer slog.SetDefault(before)
	dir := t.TempDir()
	workloadSocket := "unix://" + filepath.Join(dir, "identity.sock")
	ca, err := authority.New(t.Context(), authority.Config{Node: "a", StateDir: filepath.Join(dir, "state"), Socket: workloadSocket})
	if err != nil {
		t.Fatal(err)
	}
	defer ca.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, and nobody reads
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, command := range [][]string{
		{"get", "services"}, {"connect", "kernel://db"}, {"serve", "db", "--cidr", "10.0.0.0/24"},
	} {
		for _, tt := range []struct {
			identity, limit string
			want            *nserr.Reason
		}{
			{workloadSocket, "2s", nserr.PeerDown}, // time enough for an identity
			{"unix://" + filepath.Join(dir, "nobody.sock"), "100ms", nserr.NoIdentity},
		} {
			t.Setenv(workloadapi.SocketEnv, tt.identity)
			var out bytes.Buffer
			a := newApp()
			a.out, a.err = &out, &out
			root := a.root()
			root.SetArgs(append(command, "--connect-to=tcp://"+silent.Addr().String(), "--dial-timeout="+tt.limit))
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			code := a.exit(root.ExecuteContext(ctx))
			if code != exitUnavailable || !strings.Contains(out.String(), tt.want.Code) || ctx.Err() != nil {
				t.Errorf("%s with %s: exit code %d, printed %s; %v", command[0], tt.want.Code, code, out.String(), ctx.Err())
			}
			cancel()
		}
	}
}
