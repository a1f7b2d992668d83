// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

// A Workload API that is there and silent, as one whose process is stopped, is told
// from one that is not there.
func TestSilentWorkloadAPI(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ what, says, fix string }{
		{"silent", "has not answered within", "is not stopped"},
		{"gone", "connection refused", "start 'nsm up'"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err := Open(ctx, Config{Address: "unix://" + path})
		cancel()
		if !errors.Is(err, nserr.NoIdentity) || !strings.Contains(err.Error(), test.says) ||
			!strings.Contains(nserr.From(err).HowToFix(), test.fix) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", test.what, err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		_ = l.Close()
	}
}
