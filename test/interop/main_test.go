// SPDX-License-Identifier: Apache-2.0

// Package interop holds the tests of our parts against the reference's.
package interop

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/openvwire/nsm/test/interop/ref"
)

func TestMain(m *testing.M) {
	if err := ref.Isolate(); err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}
