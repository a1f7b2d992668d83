// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"testing"

	"google.golang.org/grpc"

	"github.com/openvwire/nsm/test/interop/ref"
)

// securities are the two ways in which every test of this package runs.
var securities = []struct {
	name string
	as   func(ca *ref.CA, t testing.TB, path string) ref.Security
}{
	{"plaintext", (*ref.CA).Plain},
	{"mutual TLS with policies", (*ref.CA).MutualTLS},
}

// onBoth runs a test once per entry of securities. It gives the test a function
// that makes the identity of a part, such as as("manager").
func onBoth(t *testing.T, test func(t *testing.T, as func(path string) ref.Security)) {
	for _, s := range securities {
		t.Run(s.name, func(t *testing.T) {
			ca := ref.NewCA(t, "example.org")
			test(t, func(path string) ref.Security { return s.as(ca, t, path) })
		})
	}
}

// dialRef returns a client connection as the reference makes it.
func dialRef(t *testing.T, s ref.Security, url string) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient(url, s.DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// soon is the deadline of a single call.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), ref.CallTimeout)
	t.Cleanup(cancel)
	return ctx
}
