// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestAnswer(t *testing.T) {
	var out bytes.Buffer
	err := answer(strings.NewReader("1\n2 -1"), &out, func(n int) (int, error) {
		if n < 0 {
			return 0, errors.New("negative")
		}
		return n + 1, nil
	})
	want := `{"Answer":2,"Error":""}
{"Answer":3,"Error":""}
{"Answer":0,"Error":"negative"}
`
	if err != nil || out.String() != want {
		t.Errorf("%q, %v; want %q", out.String(), err, want)
	}
	if err := answer(strings.NewReader("{"), &out, func(n int) (int, error) { return n, nil }); err == nil {
		t.Error("half a question: no error")
	}
}
