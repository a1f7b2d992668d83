// SPDX-License-Identifier: Apache-2.0

package client

import (
	"os"
	"testing"

	"github.com/openvwire/nsm/sdk/rpc"
)

// A namespace is open once, however many wires are in it, and not when the last has left.
func TestNamespacesAreOpenOnce(t *testing.T) {
	var n namespaces
	mine, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	first, err := n.enter(nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := n.enter(mine)
	if err != nil {
		t.Fatal(err)
	}
	if first != second || len(n.open) != 1 {
		t.Errorf("one namespace is open %d times", len(n.open))
	}
	n.leave(first)
	if url, err := rpc.InodeURL(second.file); err != nil || url != second.url {
		t.Errorf("with a wire in it, it is %s (%v), want %s", url, err, second.url)
	}
	n.leave(second)
	if _, err := second.file.Stat(); err == nil || len(n.open) != 0 {
		t.Errorf("without wires %d are open", len(n.open))
	}
	if _, err := n.enter(second.file); err == nil {
		t.Error("a closed descriptor is a namespace")
	}
}
