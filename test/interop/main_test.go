// SPDX-License-Identifier: Apache-2.0

// Package interop holds the tests of our parts against the reference's.
package interop

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/openvwire/nsm/forwarder/wireguard/holder"
	"github.com/openvwire/nsm/test/interop/ref"
)

// TestMain runs the tests, or plays the process that one of them has started.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "wireguard-holder" {
		if err := holder.Main(context.Background(), holder.Config{Socket: os.Args[3]}); err != nil {
			slog.Error("holder", "error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := ref.Isolate(); err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
	// grpcfd's SendFilename has room for one error that nobody reads. A file that
	// could not be sent, as the connection was gone, makes two.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/edwarnicke/grpcfd.(*connWrap).SendFilename.func1"))
}
