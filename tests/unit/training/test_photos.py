"""Photos from disk."""

from PIL import Image

from swifti2v_train.data.photos import read_photo


def test_photos_are_read_upright(tmp_path):
    picture = Image.new("RGB", (4, 2), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = picture.getexif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    picture.save(tmp_path / "lying.png", exif=exif)
    photo = read_photo(tmp_path / "lying.png")
    assert photo.shape == (1, 4, 2, 3) and photo[0, 0, 1].min() == 1 and photo.sum() == 3
