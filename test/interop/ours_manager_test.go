// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"testing"

	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

// managerPart is a running manager of ours: Part.URL is its Unix socket.
type managerPart struct {
	ours.Part
	public string // its TCP address, which registries learn
}

// ourManager runs our manager on a Unix socket and on a loopback TCP port.
func ourManager(t *testing.T, s ref.Security, name, registryURL string) managerPart {
	t.Helper()
	return ourManagerAt(t, s, name, registryURL, "", "")
}

// ourManagerAt runs our manager at the addresses, such as those of one before.
func ourManagerAt(t *testing.T, s ref.Security, name, registryURL, socket, public string) managerPart {
	t.Helper()
	p, public := ours.Manager(t, s, ours.ManagerConfig{Name: name, Registry: registryURL, Socket: socket, Public: public})
	return managerPart{Part: p, public: public}
}
